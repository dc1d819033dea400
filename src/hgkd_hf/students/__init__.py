"""Students: stock CNNs in the shape that distillation needs."""
