"""A booru query or a folder of pictures into verified originals, posts.sqlite and images.jsonl.

urushi download RECIPE
"""
