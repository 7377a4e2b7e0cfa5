"""The classes of true objects, and how well clusters go with them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from figureground.data.coco import ImageAnnotations
from figureground.data.coco_fields import AnnotatedImage, read_json
from figureground.data.truth import Annotation, match_images, read_truth
from figureground.errors import UsageError
from figureground.evaluation.clusters import match_objects, normalised_mutual_information, purity


class TruthClasses:
    """True objects with the class that the file gives each.

    That is ``name`` or ``orig_category_id``, as `figureground truth` writes them, else the category where the file has
    several. Crowd regions are no objects.

    Args:
        path: A COCO file.

    Raises:
        UsageError: If it is no truth file, or its objects have no classes.
    """

    def __init__(self, path: Path) -> None:
        self._truth = read_truth(path)
        content = read_json(path)
        categories = content.get("categories")
        named = {
            entry.get("id"): entry.get("name")
            for entry in (categories if isinstance(categories, list) else [])
            if isinstance(entry, dict)
        }
        found = {entry["id"]: _class_of(entry, named) for entry in content["annotations"]}
        self._classes = {number: name for number, name in found.items() if name is not None}
        if not self._classes:
            raise UsageError(
                f"{path}: its objects have no class: no `name`, no `orig_category_id`, and not two categories.",
                "Write the truth with `figureground truth`, or give a file with categories.",
            )

    def of(self, annotation: Annotation) -> str | None:
        """The class of a true object, if it has one."""
        return self._classes.get(annotation.id)

    def measure(self, images: Iterable[ImageAnnotations], clusters: int) -> dict[str, Any]:
        """Measure clusters by the classes of the objects that their instances overlap by an IoU of 0.5.

        Args:
            images: With the cluster of each annotation as its category.
            clusters: How many there are.

        Returns:
            ``purity`` and ``nmi`` in per cent, of the ``matched`` instances of all ``instances``; ``classes``, how many
            of them have; ``majorities``, commonest class and its share by cluster.

        Raises:
            UsageError: If no instance overlaps an object with a class so much.
        """
        images = list(images)
        listed = [
            AnnotatedImage(number, image["file_name"], image["height"], image["width"])
            for number, image in enumerate(images, start=1)
        ]
        pairs: list[tuple[int, str]] = []
        matched = match_images(listed, Path("The run"), self._truth)
        for entry, image in zip(listed, images, strict=True):
            if entry.id in matched:
                pairs += self._pairs(matched[entry.id], image)
        if not pairs:
            raise UsageError(
                f"No instance overlaps an object of {self._truth.path} by an IoU of 0.5, so that nothing can be "
                "measured.",
                "Is it the truth of these images?",
            )
        numbers, classes = zip(*pairs, strict=True)
        return {
            "purity": round(100 * purity(numbers, classes), 3),
            "nmi": round(100 * normalised_mutual_information(numbers, classes), 3),
            "matched": len(pairs),
            "instances": sum(len(image["annotations"]) for image in images),
            "classes": len(set(classes)),
            "majorities": _majorities(pairs, clusters),
        }

    def _pairs(self, true_image: AnnotatedImage, image: ImageAnnotations) -> list[tuple[int, str]]:
        """Cluster and class of the instances that have both."""
        objects = [each for each in self._truth.of(true_image) if not each.crowd]
        instances = [
            Annotation(number, true_image, tuple(entry["bbox"]), entry["area"], entry["segmentation"])
            for number, entry in enumerate(image["annotations"])
        ]
        found = match_objects(instances, objects)
        return [
            (entry["category_id"], self._classes[objects[index].id])
            for entry, index in zip(image["annotations"], found, strict=True)
            if index is not None and objects[index].id in self._classes
        ]


def _class_of(entry: dict[str, Any], named: dict[Any, Any]) -> str | None:
    for key in ("name", "orig_category_id"):
        if entry.get(key) is not None:
            return str(entry[key])
    number = entry.get("category_id")
    if len(named) < 2 or number is None:
        return None
    return str(named.get(number) or number)


def _majorities(pairs: list[tuple[int, str]], clusters: int) -> dict[int, tuple[str, float]]:
    found = {}
    for cluster in range(1, clusters + 1):
        counts = Counter(name for number, name in pairs if number == cluster)
        if counts:
            # Of several as common the first in the alphabet.
            name, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
            found[cluster] = (name, count / counts.total())
    return found
