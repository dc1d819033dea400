"""ReviewKD (2104.09044): a classifier's maps, reviewed from the deepest to the finest, imitate a teacher's."""
