"""Exit with 1 where the image AUROC of a new record is below the committed one's by more than the allowance.

    python auroc_must_not_fall.py baseline.json NEW_RECORD [ALLOWANCE]
"""
import json
import sys


def auroc(path: str) -> float:
    """The image AUROC over all test images of a record that `mudenet evaluate` wrote."""
    with open(path, encoding="utf-8") as f:
        record = json.load(f)
    try:
        return float(record["results"]["all"]["metrics"]["image_auroc"]["value"])
    except (KeyError, TypeError):
        sys.exit(f"{path} holds no image AUROC: it wants nominal and anomalous test images, and a record of mudenet evaluate.")


def main(before: str, now: str, allowance: str = "0.01") -> int:
    """0 where it did not fall, 1 where it did."""
    old, new, least = auroc(before), auroc(now), auroc(before) - float(allowance)
    fell = new < least
    print(f"image AUROC {old:.4f} before, {new:.4f} now: {'fell below' if fell else 'at least'} {least:.4f}")
    return int(fell)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
