const boxes = [...document.querySelectorAll(".ious input")];
function showCards() {
  const wanted = boxes.filter((box) => box.checked).map((box) => box.value);
  const cards = [...document.querySelectorAll(".cards li")];
  cards.forEach((card) => {
    const there = card.dataset.classes.split(" ");
    card.hidden = wanted.length > 0 && !wanted.some((number) => there.includes(number));
  });
  const shown = cards.filter((card) => !card.hidden).length;
  find("shown").textContent = shown === cards.length ? `${shown} images` : `${shown} of ${cards.length} images`;
}
boxes.forEach((box) => box.addEventListener("change", showCards));
