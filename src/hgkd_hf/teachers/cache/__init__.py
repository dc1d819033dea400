"""What a frozen teacher saw, on the disk: taught once, many students learn from it without the teacher."""

from .cached_teacher import CachedTeacher, recall
from .info import CacheInfo
from .reader import CachedView, TeacherCache, cache_settings, open_cache
from .writer import begin_cache, check_folder, shards_to_write, write_shards

__all__ = [
    "CacheInfo",
    "CachedTeacher",
    "CachedView",
    "TeacherCache",
    "begin_cache",
    "cache_settings",
    "check_folder",
    "open_cache",
    "recall",
    "shards_to_write",
    "write_shards",
]
