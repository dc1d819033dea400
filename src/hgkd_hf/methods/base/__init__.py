"""What all methods share: their settings, the attached teacher, and bases of configs and classifiers."""
