const { methods, images } = JSON.parse(find("data").textContent);
const view = find("view");
const filters = find("filters");
const choice = find("methods");
const lightbox = find("lightbox");

images.forEach((image, index) => {
  image.row = find(`image-${index + 1}`);
  image.order = index;
  image.key = image.name.toLowerCase();
  for (const instances of [...image.found, image.truth ?? []]) {
    instances.forEach((instance, i) => (instance.colour = HUES[i % HUES.length]));
  }
});

/** What can be laid over a photograph, in the order of the page: nothing, the truth, each method. */
function layersOf(image) {
  const layers = [{ key: "original", name: "Original", instances: [] }];
  if (image.truth) layers.push({ key: "truth", name: "Truth", instances: image.truth });
  methods.forEach(({ name }, i) => {
    const instances = image.found[i];
    const surest = instances.length ? Math.max(...instances.map(({ score }) => score ?? 0)) : null;
    layers.push({ key: String(i), name, instances, surest, iou: image.iou?.[i] ?? null });
  });
  return layers;
}

function overlayOf(image, layer) {
  const overlay = drawOverlay({ thumbnail: image.thumbnail, instances: layer.instances });
  for (const group of overlay.children) {
    const { score } = layer.instances[group.dataset.instance];
    // In the truth there is no surest one: all of it stays.
    if (layer.surest === undefined || (score ?? 0) === layer.surest) group.dataset.surest = "";
  }
  return overlay;
}

const scoreText = (layer) => (layer.surest === undefined ? "" : layer.surest === null ? "nothing" : layer.surest.toFixed(2));

function tileOf(image, layer) {
  const frame = html("a", "frame", image.row.querySelector(".frame > *").cloneNode(true));
  frame.href = `#${image.row.id}`;
  frame.setAttribute("aria-label", `${image.name}, ${layer.name}`);
  if (frame.querySelector("img")) frame.append(overlayOf(image, layer));
  const caption = html("figcaption", "", html("b", "", layer.name));
  const tile = html("figure", "tile", frame, caption);
  if (layer.surest === undefined) {
    caption.append(html("span", "", plural(layer.instances.length, "object")));
  } else {
    caption.append(html("span", "", layer.iou === null ? scoreText(layer) : `${scoreText(layer)} · IoU ${layer.iou.toFixed(2)}`));
    caption.title = layer.surest === null ? "Nothing was found." : `${plural(layer.instances.length, "object")}; score of the surest${layer.iou === null ? "" : ", and its IoU with the truth"}`;
  }
  if (layer.iou !== null && layer.iou !== undefined) {
    const bar = html("i", "");
    bar.style.width = `${layer.iou * 100}%`;
    tile.append(html("span", "meter", bar));
  }
  tile.dataset.shows = layer.key;
  return tile;
}

// Which methods are shown decides what an image is ranked by.

const shownKeys = () => new Set([...choice.querySelectorAll("input:checked")].map((box) => (box.name === "method" ? box.value : box.name)));

const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);

/** Disagreement and IoU of the methods `chosen`, or null where there is none to tell. */
function standing(image, chosen) {
  const pairs = [];
  let at = 0;
  for (let i = 0; i < methods.length; i++) {
    for (let j = i + 1; j < methods.length; j++, at++) {
      if (chosen.includes(i) && chosen.includes(j)) pairs.push(image.agreement[at]);
    }
  }
  const agreement = mean(pairs);
  return {
    disagreement: agreement === null ? null : 1 - agreement,
    iou: image.iou ? mean(chosen.map((i) => image.iou[i])) : null,
  };
}

const orders = {
  order: () => 0,
  disagreement: ({ disagreement }) => -(disagreement ?? 0),
  agreement: ({ disagreement }) => disagreement ?? 0,
  best: ({ iou }) => -(iou ?? -1),
  worst: ({ iou }) => iou ?? 2,
};

let shown = images;

function applyFilters() {
  const keys = shownKeys();
  // Baselines agree on nothing with anybody by design: they count only where nothing else is shown.
  let chosen = methods.map((_, i) => i).filter((i) => keys.has(String(i)));
  const learned = chosen.filter((i) => !methods[i].baseline);
  if (learned.length > 1) chosen = learned;
  const text = filters.elements.text.value.trim().toLowerCase();
  for (const image of images) {
    image.standing = standing(image, chosen);
    const { disagreement, iou } = image.standing;
    const parts = [`${image.size[0]} × ${image.size[1]} px`];
    if (disagreement !== null) parts.push(`disagreement ${disagreement.toFixed(2)}`);
    if (iou !== null) parts.push(`mean IoU ${iou.toFixed(2)}`);
    image.row.querySelector(".standing-here").textContent = parts.join(" · ");
    image.row.hidden = !image.key.includes(text);
    showChosen(image, keys);
  }
  const rank = orders[filters.elements.sort.value];
  const sorted = images.toSorted((a, b) => rank(a.standing) - rank(b.standing) || a.order - b.order);
  if (sorted.some((image, i) => find("rows").children[i] !== image.row)) {
    find("rows").append(...sorted.map((image) => image.row));
  }
  shown = sorted.filter((image) => !image.row.hidden);
  const baselines = chosen === learned ? "" : ", baselines included";
  find("tally").textContent = `${plural(shown.length, "image")}; disagreement is one less the mean IoU between the surest masks of the methods shown${baselines}.`;
  find("nothing").hidden = shown.length > 0;
}

function showChosen(image, keys) {
  for (const tile of image.row.querySelectorAll(".tile")) tile.hidden = !keys.has(tile.dataset.shows);
}

function applyView() {
  const { masks, boxes, surest, opacity, side } = view.elements;
  const root = document.documentElement;
  root.classList.toggle("no-masks", !masks.checked);
  root.classList.toggle("no-boxes", !boxes.checked);
  root.classList.toggle("only-surest", surest.checked);
  root.style.setProperty("--opacity", opacity.value);
  find("rows").style.setProperty("--side", `${side.value}px`);
}

// The large view.

let current = null;
let layer = "original";

function showImage(image, key = layer) {
  const keys = shownKeys();
  const layers = layersOf(image).filter((each) => keys.has(each.key) || each.key === key);
  const chosen = layers.find((each) => each.key === key) ?? layers[0];
  [current, layer] = [image, chosen.key];
  const [width, height] = image.thumbnail;
  const frame = html("div", "frame", image.row.querySelector(".frame > *").cloneNode(true));
  frame.style.setProperty("--width", width);
  frame.style.setProperty("--height", height);
  if (frame.querySelector("img")) frame.append(overlayOf(image, chosen));
  find("stage").replaceChildren(frame);
  find("title").textContent = image.name;
  find("about-image").textContent = `${chosen.name}${chosen.key === "original" ? "" : `: ${plural(chosen.instances.length, "object")}`} · ${image.size[0]} × ${image.size[1]} px`;
  find("instances").replaceChildren(...layers.map((each) => layerRow(each, each.key === chosen.key)));
  find("instances").querySelector('[aria-pressed="true"]').scrollIntoView({ block: "nearest" });
  find("position").textContent = `${number.format(shown.indexOf(image) + 1)} / ${number.format(shown.length)}`;
  if (!lightbox.open) {
    find("view-slot").append(view);
    lightbox.showModal();
  }
}

function layerRow(each, pressed) {
  const iou = each.iou === null || each.iou === undefined ? "" : `IoU ${each.iou.toFixed(2)}`;
  const button = html("button", "row", html("b", "", each.name), html("span", "", scoreText(each)), html("small", "", iou));
  button.type = "button";
  button.dataset.layer = each.key;
  button.setAttribute("aria-pressed", pressed);
  return html("li", "", button);
}

function goToImage(by) {
  const at = shown.indexOf(current);
  showImage(shown[(at + by + shown.length) % shown.length]);
}

function goToLayer(by) {
  const keys = [...find("instances").querySelectorAll(".row")].map((row) => row.dataset.layer);
  showImage(current, keys[(keys.indexOf(layer) + by + keys.length) % keys.length]);
}

// What a person does.

function listen() {
  view.addEventListener("input", applyView);
  filters.addEventListener("input", applyFilters);
  choice.addEventListener("input", applyFilters);
  for (const form of [view, filters, choice]) form.addEventListener("submit", (event) => event.preventDefault());
  for (const [id, checked] of [["everything", true], ["nothing-else", false]]) {
    find(id).addEventListener("click", () => {
      for (const box of choice.querySelectorAll('[name="method"]')) box.checked = checked;
      applyFilters();
    });
  }
  find("rows").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!event.target.closest(".frame") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    showImage(images.find(({ row }) => row.contains(tile)), tile.dataset.shows);
  });
  lightbox.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) showImage(current, row.dataset.layer);
    else if (event.target === find("stage")) lightbox.close();
  });
  lightbox.addEventListener("close", () => {
    find("toolbar").prepend(view);
    current.row.scrollIntoView({ block: "nearest" });
    current = null;
  });
  find("close").addEventListener("click", () => lightbox.close());
  find("previous").addEventListener("click", () => goToImage(-1));
  find("next").addEventListener("click", () => goToImage(1));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const toggle = { m: "masks", b: "boxes", s: "surest" }[event.key.toLowerCase()];
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (toggle) {
      view.elements[toggle].checked = !view.elements[toggle].checked;
      applyView();
    } else if (lightbox.open && step) {
      event.preventDefault();
      (event.key === "ArrowLeft" || event.key === "ArrowRight" ? goToImage : goToLayer)(step);
    }
  });
}

/** Draws a row when it comes near the window, not before. */
function drawWhenNear() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        const image = images.find(({ row }) => row === target);
        const layers = layersOf(image).slice(1);
        target.querySelector(".tiles").append(...layers.map((each) => tileOf(image, each)));
        showChosen(image, shownKeys());
      }
    },
    { rootMargin: "600px" },
  );
  for (const { row } of images) observer.observe(row);
}

if (images.length) {
  listen();
  applyView();
  applyFilters();
  drawWhenNear();
  const [, index, key] = /^#image-(\d+)(?::(.+))?$/.exec(location.hash) ?? [];
  if (key) showImage(images[index - 1], key);
}
