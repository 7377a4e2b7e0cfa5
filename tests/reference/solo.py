"""SOLOv2 and FreeSOLO one object, one cell and one pixel at a time, from their papers."""

import math

Grid = list[list[float]]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dice(a: list[float], b: list[float]) -> float:
    return 1 - 2 * sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a + b) + 1e-5)


def projections(logits: Grid, target: Grid, average: bool) -> float:
    def reduce(values: list[float]) -> float:
        return sum(values) / len(values) if average else max(values)

    soft = [[sigmoid(value) for value in row] for row in logits]
    rows = dice([reduce(row) for row in soft], [reduce(row) for row in target])
    columns = dice(
        [reduce(list(c)) for c in zip(*soft, strict=True)], [reduce(list(c)) for c in zip(*target, strict=True)]
    )
    return rows + columns


def affinity(lab: list[Grid], valid: list[list[bool]], dilation: int) -> list[Grid]:
    height, width = len(valid), len(valid[0])
    found = []
    for dy in (-dilation, 0, dilation):
        for dx in (-dilation, 0, dilation):
            if dy == dx == 0:
                continue
            plane = [[0.0] * width for _ in range(height)]
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if 0 <= v < height and 0 <= u < width and valid[y][x] and valid[v][u]:
                        plane[y][x] = math.exp(-math.dist([c[y][x] for c in lab], [c[v][u] for c in lab]) / 2)
            found.append(plane)
    return found


def pairwise(logits: Grid, similar: list[Grid], inside: list[list[bool]], threshold: float, dilation: int):
    """Sum over pairs, and their number, of one mask."""
    total, count, plane = 0.0, 0, 0
    for dy in (-dilation, 0, dilation):
        for dx in (-dilation, 0, dilation):
            if dy == dx == 0:
                continue
            for y, row in enumerate(inside):
                for x, counts in enumerate(row):
                    if counts and similar[plane][y][x] >= threshold:
                        p, q = sigmoid(logits[y][x]), sigmoid(logits[y + dy][x + dx])
                        total -= math.log(p * q + (1 - p) * (1 - q))
                        count += 1
            plane += 1
    return total, count


def focal(logit: float, positive: bool) -> float:
    p = sigmoid(logit)
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def owners(masks: list[list[list[bool]]], boxes: Grid, size, grids, ranges, centre: float) -> list[dict]:
    """For each level, from the row and column of a cell to its object."""
    height, width = size
    areas = [sum(map(sum, mask)) for mask in masks]
    levels = []
    for side, (low, high) in zip(grids, ranges, strict=True):
        cells: dict[tuple[int, int], int] = {}
        for index, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes, strict=True)):
            if not low <= math.sqrt((x2 - x1) * (y2 - y1)) <= high or not areas[index]:
                continue
            pixels = [(y + 0.5, x + 0.5) for y, row in enumerate(mask) for x, on in enumerate(row) if on]
            cy, cx = (sum(axis) / len(pixels) for axis in zip(*pixels, strict=True))
            dy, dx = centre * (y2 - y1) / 2, centre * (x2 - x1) / 2
            for row in range(side):
                for column in range(side):
                    middle = math.floor(cy / height * side), math.floor(cx / width * side)
                    near = abs(row - middle[0]) <= 1 and abs(column - middle[1]) <= 1
                    # Whether the cell and the centre region have a point in common, borders below and right apart.
                    tall = row / side * height <= cy + dy and (row + 1) / side * height > cy - dy
                    wide = column / side * width <= cx + dx and (column + 1) / side * width > cx - dx
                    if near and tall and wide:
                        other = cells.get((row, column))
                        if other is None or areas[index] < areas[other]:
                            cells[row, column] = index
        levels.append(cells)
    return levels


def peaks(scores: Grid) -> Grid:
    """Point NMS: what is exceeded by the place above, left, or above left of it becomes 0."""
    found = [[0.0] * len(scores[0]) for _ in scores]
    for y, row in enumerate(scores):
        for x, score in enumerate(row):
            before = [(y - 1, x), (y, x - 1), (y - 1, x - 1)]
            if all(scores[v][u] <= score for v, u in before if v >= 0 and u >= 0):
                found[y][x] = score
    return found


def convolve(kernel: list[float], features: list[Grid]) -> Grid:
    height, width = len(features[0]), len(features[0][0])
    return [
        [sum(k * plane[y][x] for k, plane in zip(kernel, features, strict=True)) for x in range(width)]
        for y in range(height)
    ]
