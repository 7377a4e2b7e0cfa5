const cards = document.querySelectorAll(".card");
JSON.parse(find("data").textContent).forEach((image, index) => {
  image.instances.forEach((instance, i) => (instance.colour = HUES[i % HUES.length]));
  if (cards[index].querySelector("img")) cards[index].querySelector(".frame").append(drawOverlay(image));
});
