"""What a pre-trained student is for: classification, segmentation and detection on stock transformers heads.

`registry.TASKS` has the tasks by name.
"""
