"""What all methods share: how a setting is written, what a distiller is, and what a command needs of a method."""
