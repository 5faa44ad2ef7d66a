"""m3-mini from nothing: a small M3 trained on generated scenes, on CPU or GPU."""
