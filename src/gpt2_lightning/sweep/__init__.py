"""The sweep engine: a study's trials, each a run in a process of its own, asked for, watched and told."""
