"""The settings of every part: dataclasses free of torch, so that help and configuration errors are quick."""
