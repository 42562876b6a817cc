"""Programs for developers; they may use ddpm, never the reverse."""
