"""Picture files into pixels on their place in a bucket: the one way in which resizing, and caching
without kept pictures, look at an original."""
