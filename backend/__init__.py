"""The web tier: Label Studio's words. Never imports torch."""
