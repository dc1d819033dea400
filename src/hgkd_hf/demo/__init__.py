"""The quickstart: images and a teacher that are made here, offline, and a table of what students learn from it."""
