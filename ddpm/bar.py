"""Progress bar of the console."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A bar that messages neither erase nor draw before its delay has passed."""

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Erase the bar from the screen."""
        if self._is_visible():
            super().clear(*args, **kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Draw the bar."""
        if self._is_visible():
            super().refresh(*args, **kwargs)

    def _is_visible(self) -> bool:
        return not self.disable and self.last_print_t >= self.start_t + self.delay
