"""Work of several processes: devices, agreement, shares, and the output folder."""
