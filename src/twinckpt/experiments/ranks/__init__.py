"""Programs that torchrun starts on every rank; each logs what it measures as JSON lines."""
