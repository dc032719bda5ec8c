"""What the decoder is used for: a task says in one small file how a record becomes X and Y, and what judges it."""
