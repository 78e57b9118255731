"""A table in Markdown, for what is filled into the pages."""


def table(header: list, rows: list) -> str:
    """Header, rule and rows; every cell as it prints."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
