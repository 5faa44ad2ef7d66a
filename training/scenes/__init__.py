"""Generated pictures with questions: what needs how many visual tokens is known by construction."""

from training.scenes.scene import Question, Scene, generate_scene

__all__ = ["Question", "Scene", "generate_scene"]
