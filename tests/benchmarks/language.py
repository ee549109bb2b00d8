"""Language identification of short texts: packaged models beside each other, accuracy a language and rows/s.

python tests/benchmarks/language.py [ROWS]      20,000 unless told; the slowest model takes most of the time.
Texts are names of emoji in the languages that the package `emoji` has. A name that is one string in several languages
(letter case and hyphens aside) is left out, as is one without a letter.
"""

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import emoji
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from pipeline.ingest.language import PACKAGED, identity, load_model

LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ru", "tr", "id", "ja", "zh", "ko", "ar", "fa")
Answer = Callable[[str], tuple[str, float]]


def named(rows: int) -> list[tuple[str, str]]:
    """(name, language), a seeded draw of all emoji names that belong to one language."""
    owners: dict[str, set[str]] = defaultdict(set)
    for language in LANGUAGES:
        emoji.config.load_language(language)
    for names in emoji.EMOJI_DATA.values():
        for language in LANGUAGES:
            if language in names:
                name = str(names[language]).strip(":").replace("_", " ").replace("-", " ").casefold()
                if any(map(str.isalpha, name)):
                    owners[name].add(language)
    unique = sorted((name, *languages) for name, languages in owners.items() if len(languages) == 1)
    picks = np.random.default_rng(5).permutation(len(unique))[:rows]
    print(f"{len(unique):,} names of one language, {len(picks):,} drawn; {len(owners) - len(unique):,} are of several")
    return [(unique[pick][0], unique[pick][1]) for pick in picks]


def py3langid() -> Answer:
    from py3langid.langid import _load_identifier

    identifier = _load_identifier(norm_probs=True)
    return lambda text: identifier.classify(text)


def cld3() -> Answer:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(0, 1000)

    def answer(text: str) -> tuple[str, float]:
        found = identifier.FindLanguage(text)
        return found.language[:2], found.probability

    return answer


def cld2() -> Answer:
    import pycld2

    def answer(text: str) -> tuple[str, float]:
        best = pycld2.detect(text, bestEffort=True)[2][0]
        return best[1][:2], best[2] / 100

    return answer


MODELS: dict[str, Callable[[], Answer]] = {
    "fasttext-176": lambda: load_model("fasttext-176"),
    "lingua": lambda: load_model("lingua"),
    "py3langid": py3langid,
    "cld2": cld2,
    "cld3": cld3,
}


def main() -> None:
    rows = named(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    for name in PACKAGED:
        print(identity(name))
    totals = Counter(language for _, language in rows)
    print(f"{'model':<14}{'mean':>6}" + "".join(f"{language:>6}" for language in LANGUAGES) + "  rows/CPU s  peak MiB")
    kept: list[str] = []
    for name, load in MODELS.items():
        try:
            answer = load()
        except ImportError:
            print(f"{name:<14} not installed")
            continue
        for text, _ in rows[:200]:  # lingua reads a language's model when it first needs it
            answer(text)
        begun = time.process_time()
        answers = [answer(text) for text, _ in rows]
        spent = time.process_time() - begun
        right = np.array([found == language for (found, _), (_, language) in zip(answers, rows, strict=True)])
        hits = Counter(language for (_, language), hit in zip(rows, right, strict=True) if hit)
        shares = [hits[language] / totals[language] for language in LANGUAGES]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{name:<14}{np.mean(shares):>6.3f}" + "".join(f"{share:>6.2f}" for share in shares)
            + f"{len(rows) / spent:>12,.0f}{peak:>10,}", flush=True,
        )  # fmt: skip
        scores = np.array([score for _, score in answers])
        for least in (0.0, 0.15, 0.2, 0.3, 0.5):
            told = scores >= least
            kept.append(f"{name:<14}{least:>6.2f}{told.mean():>8.3f}{right[told].mean():>10.3f}")
    print(f"\n{'model':<14}{'least':>6}{'told':>8}{'right':>10}    below the least score a text is und")
    print("\n".join(kept))


if __name__ == "__main__":
    main()
