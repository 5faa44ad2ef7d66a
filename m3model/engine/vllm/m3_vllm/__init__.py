"""What runs in vLLM's environment, under this name: it imports torch, vLLM and itself only."""
