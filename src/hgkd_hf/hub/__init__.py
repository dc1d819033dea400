"""What leaves a run: the publishable folder, its card, and the way to the Hub and back."""

from .export import export_student, student_image_processor
from .folder import write_student_folder
from .push import PushError, PushOptions, push_folder
from .sources import License, Source, find_source
from .student_card import StudentCard
from .student_publisher import StudentPublisher
from .student_push import push_student, push_to_hub

__all__ = [
    "License",
    "PushError",
    "PushOptions",
    "Source",
    "StudentCard",
    "StudentPublisher",
    "export_student",
    "find_source",
    "push_folder",
    "push_student",
    "push_to_hub",
    "student_image_processor",
    "write_student_folder",
]
