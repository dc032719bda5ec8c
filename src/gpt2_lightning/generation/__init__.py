"""From a decoder and prompts to text."""
