"""From a decoder and records to figures that others can compare theirs with."""
