"""The parts behind the gateway: `messages` travel between them; encoder and generator do the work.

This file stays empty, so that the gateway loads without torch.
"""
