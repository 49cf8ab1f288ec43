"""Text for tests: deterministic, and enough like English for a tokenizer to learn from."""

SENTENCES = [
    "The river ran low in the summer of that year, and the mill stood still.",
    "Nobody knew where the old map had come from, or who had drawn it.",
    "She counted the boats again: seven at the quay, two beyond the bar.",
    "A cold wind blew from the north; the harbour lights went out one by one.",
    "He wrote three letters, burned two of them, and kept the last.",
]


def make_text(num_lines: int, articles: bool = True) -> str:
    """Deterministic English-like text, about 70 characters a line, an article title every eight lines."""
    lines = []
    for number in range(num_lines):
        if articles and number % 8 == 0:
            lines.append(f" = Article {number} = \n")
        words = (SENTENCES[number % 5] + " " + SENTENCES[(number * 3 + 1) % 5]).split()
        shift = number % 7
        lines.append(" ".join(words[shift : shift + 12]) + f" {number}\n")
    return "".join(lines)
