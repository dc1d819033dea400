"""What leaves a run: the publishable folder, its card, and the way to the Hub."""

from .card import StudentCard
from .export import export_student, student_image_processor

__all__ = ["StudentCard", "export_student", "student_image_processor"]
