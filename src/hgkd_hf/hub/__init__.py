"""What leaves a run: the publishable folder and its card."""

from .card import StudentCard
from .export import export_student, student_image_processor

__all__ = ["StudentCard", "export_student", "student_image_processor"]
