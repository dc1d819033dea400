"""The names of what lies in a run's folder beside its checkpoints."""

RECIPE_FILE = "recipe.yaml"  # all settings
METRICS_FILE = "metrics.jsonl"  # the log, one entry a line
SUMMARY_FILE = "summary.json"  # written at the end
NON_FINITE_FILE = "non_finite.jsonl"  # steps that were skipped
STUDENT_FOLDER, BEST_FOLDER = "student", "student-best"  # of a distillation
MODEL_FOLDER = "model"  # of a fine-tuning
