const images = JSON.parse(find("data").textContent);
const cards = [...document.querySelectorAll(".card")];
const view = find("view");
const filters = find("filters");
const lightbox = find("lightbox");
const tip = find("tip");

images.forEach((image, index) => {
  image.card = cards[index];
  image.order = index;
  image.key = image.name.toLowerCase();
  image.instances.forEach((instance, i) => (instance.colour = HUES[i % HUES.length]));
});

function markHidden(overlay, image) {
  for (const group of overlay.children) {
    group.classList.toggle("off", !passes(image.instances[group.dataset.instance]));
  }
}

/** Raises one instance above the others, in every drawing of `scope`; `null` lowers all. */
function emphasise(scope, instance) {
  for (const overlay of scope.querySelectorAll(".overlay")) {
    overlay.classList.toggle("choosing", instance !== null);
    for (const group of overlay.children) {
      group.classList.toggle("chosen", group.dataset.instance === String(instance));
    }
  }
}

// Filters act on instances; an image is shown when enough of its instances remain.

const limits = { score: 0, area: 0, least: 0, most: Infinity, text: "" };

function readLimits() {
  const { score, area, least, most, text } = filters.elements;
  limits.score = score ? Number(score.value) : 0;
  limits.area = Number(area.value) ** 3; // Most objects are small: the cube gives them most of the slider.
  limits.least = least.value === "" ? 0 : Number(least.value);
  limits.most = most.value === "" ? Infinity : Number(most.value);
  limits.text = text.value.trim().toLowerCase();
}

const passes = (instance) => (instance.score ?? 1) >= limits.score && instance.share >= limits.area;

const orders = {
  order: () => 0,
  best: (image) => -Math.max(-1, ...image.left.map((instance) => instance.score ?? 0)),
  worst: (image) => Math.min(2, ...image.left.map((instance) => instance.score ?? 0)),
  many: (image) => -image.left.length,
  few: (image) => image.left.length,
  large: (image) => -Math.max(0, ...image.left.map((instance) => instance.share)),
  small: (image) => Math.min(2, ...image.left.map((instance) => instance.share)),
};

let shown = images;

function applyFilters() {
  readLimits();
  for (const image of images) {
    image.left = image.instances.filter(passes);
    const count = image.left.length;
    const fits = count >= limits.least && count <= limits.most && image.key.includes(limits.text);
    image.card.hidden = !fits;
    image.card.querySelector(".count").textContent = plural(count, "object");
    if (image.overlay) markHidden(image.overlay, image);
  }
  const rank = orders[filters.elements.sort.value];
  const ranked = images.map((image) => [rank(image), image]);
  ranked.sort(([a, first], [b, second]) => a - b || first.order - second.order);
  const sorted = ranked.map(([, image]) => image);
  if (sorted.some((image, i) => find("gallery").children[i] !== image.card)) {
    find("gallery").append(...sorted.map((image) => image.card));
  }
  shown = sorted.filter((image) => !image.card.hidden);
  describeFilters();
}

function describeFilters() {
  const { elements } = filters;
  if (elements.score) elements.score_text.value = limits.score.toFixed(2);
  elements.area_text.value = percent(limits.area);
  const active = limits.score > 0 || limits.area > 0 || limits.least > 0 || limits.most < Infinity || limits.text;
  const left = shown.reduce((sum, image) => sum + image.left.length, 0);
  const all = images.reduce((sum, image) => sum + image.instances.length, 0);
  find("tally").textContent = active
    ? `${number.format(left)} of ${plural(all, "object")} in ${number.format(shown.length)} of ${plural(images.length, "image")} pass the filters.`
    : `${plural(all, "object")} in ${plural(images.length, "image")}.`;
  find("reset").hidden = !active;
  find("nothing").hidden = shown.length > 0;
  for (const bar of document.querySelectorAll("#scores .bar")) {
    bar.classList.toggle("out", Number(bar.dataset.high) <= limits.score);
  }
  for (const bar of document.querySelectorAll("#counts .bar")) {
    bar.classList.toggle("out", Number(bar.dataset.high) <= limits.least || Number(bar.dataset.low) > limits.most);
  }
}

function applyView() {
  const { masks, boxes, original, opacity } = view.elements;
  const root = document.documentElement;
  root.classList.toggle("no-masks", !masks.checked);
  root.classList.toggle("no-boxes", !boxes.checked);
  root.classList.toggle("only-original", original.checked);
  root.style.setProperty("--opacity", opacity.value);
}

// The large view.

let current = null;

function describe(image, instance) {
  const [width, height] = image.thumbnail;
  const box = instance.box;
  const pixels = (length, axis) => Math.round((length * image.size[axis]) / [width, height][axis]);
  return {
    score: instance.score === null ? "–" : instance.score.toFixed(2),
    area: `${instance.kind ? `${instance.kind} · ` : ""}${percent(instance.share)} of the image`,
    box: `${pixels(box[2], 0)} × ${pixels(box[3], 1)} px`,
  };
}

function showImage(image, instance = null) {
  current = image;
  const [width, height] = image.thumbnail;
  const frame = html("div", "frame");
  frame.style.setProperty("--width", width);
  frame.style.setProperty("--height", height);
  frame.append(image.card.querySelector("img, .problem").cloneNode(true));
  if (frame.querySelector("img")) {
    const overlay = drawOverlay(image);
    markHidden(overlay, image);
    frame.append(overlay);
  }
  find("stage").replaceChildren(frame);
  find("title").textContent = image.name;
  find("about-image").textContent = `${plural(image.left.length, "object")} · ${image.size[0]} × ${image.size[1]} px`;
  find("instances").replaceChildren(...image.left.map((each) => instanceRow(image, each)));
  const away = image.instances.length - image.left.length;
  find("hidden-note").textContent = away ? `${plural(away, "object")} hidden by the filters` : "";
  find("position").textContent = `${number.format(shown.indexOf(image) + 1)} / ${number.format(shown.length)}`;
  if (!lightbox.open) {
    find("view-slot").append(view);
    lightbox.showModal();
  }
  history.replaceState(null, "", `#image-${image.order + 1}`);
  if (instance !== null) chooseRow(instance);
}

function instanceRow(image, instance) {
  const i = image.instances.indexOf(instance);
  const text = describe(image, instance);
  const swatch = html("i", "swatch");
  swatch.style.background = instance.colour;
  const button = html("button", "row", swatch, html("b", "", text.score), html("span", "", text.area), html("small", "", text.box));
  button.type = "button";
  button.dataset.instance = i;
  button.title = `Annotation ${instance.id}`;
  button.setAttribute("aria-pressed", "false");
  return html("li", "", button);
}

/** Holds one instance up until another, or the same one again, is chosen. */
function chooseRow(instance) {
  for (const row of lightbox.querySelectorAll(".row")) {
    const chosen = row.dataset.instance === String(instance) && row.getAttribute("aria-pressed") === "false";
    row.setAttribute("aria-pressed", chosen);
  }
  settle();
}

/** Back from pointing to what is chosen. */
function settle() {
  const chosen = lightbox.querySelector('.row[aria-pressed="true"]');
  emphasise(find("stage"), chosen ? Number(chosen.dataset.instance) : null);
  for (const row of lightbox.querySelectorAll(".row")) row.classList.remove("pointed");
}

function pointAt(instance) {
  emphasise(find("stage"), instance);
  for (const row of lightbox.querySelectorAll(".row")) {
    row.classList.toggle("pointed", row.dataset.instance === String(instance));
  }
}

function go(by) {
  const at = shown.indexOf(current);
  showImage(shown[(at + by + shown.length) % shown.length]);
}

const instanceUnder = (event) => {
  const group = event.target.closest("[data-instance]");
  return group ? Number(group.dataset.instance) : null;
};

function openFromHash() {
  const image = images[Number(/^#image-(\d+)$/.exec(location.hash)?.[1]) - 1];
  if (image && image !== current) showImage(image);
}

// What a person does.

function listen() {
  view.addEventListener("input", applyView);
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("reset", () => setTimeout(applyFilters));
  for (const form of [view, filters]) form.addEventListener("submit", (event) => event.preventDefault());

  const gallery = find("gallery");
  gallery.addEventListener("click", (event) => {
    const frame = event.target.closest(".frame");
    if (!frame || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    showImage(images[cards.indexOf(frame.parentElement)], instanceUnder(event));
  });
  gallery.addEventListener("pointermove", (event) => {
    const instance = event.pointerType === "touch" ? null : instanceUnder(event);
    const card = event.target.closest(".card");
    for (const frame of gallery.querySelectorAll(".overlay.choosing")) emphasise(frame.parentElement, null);
    tip.hidden = instance === null;
    if (instance === null) return;
    emphasise(card, instance);
    const image = images[cards.indexOf(card)];
    const text = describe(image, image.instances[instance]);
    tip.replaceChildren("Score ", html("b", "", text.score), ` · ${text.area}`);
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
  });
  gallery.addEventListener("pointerleave", () => {
    tip.hidden = true;
    for (const frame of gallery.querySelectorAll(".overlay.choosing")) emphasise(frame.parentElement, null);
  });

  lightbox.addEventListener("pointerover", (event) => {
    const instance = instanceUnder(event);
    if (instance === null) settle();
    else pointAt(instance);
  });
  lightbox.addEventListener("focusin", (event) => {
    if (event.target.matches(".row:focus-visible")) pointAt(Number(event.target.dataset.instance));
  });
  lightbox.addEventListener("click", (event) => {
    const instance = instanceUnder(event);
    if (instance !== null) chooseRow(instance);
    else if (event.target === find("stage")) lightbox.close();
  });
  lightbox.addEventListener("close", () => {
    find("toolbar").prepend(view);
    history.replaceState(null, "", location.href.split("#")[0]);
    current.card.querySelector(".frame").focus({ preventScroll: true });
    current.card.scrollIntoView({ block: "nearest" });
    current = null;
  });
  find("close").addEventListener("click", () => lightbox.close());
  find("previous").addEventListener("click", () => go(-1));
  find("next").addEventListener("click", () => go(1));

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const toggle = { m: "masks", b: "boxes", o: "original" }[event.key.toLowerCase()];
    if (toggle) {
      view.elements[toggle].checked = !view.elements[toggle].checked;
      applyView();
    } else if (lightbox.open && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      event.preventDefault();
      go(event.key === "ArrowLeft" ? -1 : 1);
    } else if (lightbox.open && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      const rows = [...lightbox.querySelectorAll(".row")];
      if (!rows.length) return;
      event.preventDefault();
      const at = rows.indexOf(document.activeElement);
      const by = event.key === "ArrowUp" ? -1 : 1;
      rows[at < 0 ? 0 : (at + by + rows.length) % rows.length].focus();
    }
  });
  addEventListener("hashchange", openFromHash);
}

/** Draws the masks of a card when it comes near the window, not before. */
function drawWhenNear() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        const image = images[cards.indexOf(target)];
        image.overlay = drawOverlay(image);
        markHidden(image.overlay, image);
        target.querySelector(".frame").append(image.overlay);
      }
    },
    { rootMargin: "600px" },
  );
  for (const card of cards) if (card.querySelector("img")) observer.observe(card);
}

if (images.length) {
  listen();
  applyView();
  applyFilters();
  drawWhenNear();
  openFromHash();
}
