"""From files to batches: corpus -> tokens -> blocks -> stream. ``stream.StreamDataModule`` is the one door."""
