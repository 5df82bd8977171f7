"""Tags and a score into caption text: score words in, artist names out."""
