"""RoB: a frozen vision transformer assigns images to prototypes, and a student learns the assignments (2301.09451)."""
