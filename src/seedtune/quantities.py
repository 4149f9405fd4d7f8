"""Numbers with their units as people read them. No quantity is measured or parsed here."""


def amount(num_bytes: float) -> str:
    """
    >>> amount(950), amount(31_000), amount(7_600_000)
    ('950 B', '31.0 kB', '7.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def operations(count: float) -> str:
    """
    >>> operations(950), operations(6_568_378_368), operations(2.1e15)
    ('950', '6.57 G', '2.10 P')
    """
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000 or unit == "E":
            return f"{count:.0f}" if not unit else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """
    >>> duration(0.0123), duration(4.25), duration(75), duration(7330)
    ('12.3 ms', '4.25 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
