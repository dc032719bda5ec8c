"""What a run or a study says of itself: pages of HTML and Markdown, and lists, from the files alone."""
