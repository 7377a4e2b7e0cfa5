const { columns, images } = JSON.parse(find("data").textContent);
document.querySelectorAll(".seen-row").forEach((row, index) => {
  const { thumbnail, found } = images[index];
  const original = row.querySelector(".frame > *");
  found.forEach((instances, column) => {
    instances.forEach((instance, i) => (instance.colour = HUES[i % HUES.length]));
    const frame = html("div", "frame", original.cloneNode(true));
    if (original.matches("img")) frame.append(drawOverlay({ thumbnail, instances }));
    const caption = html("figcaption", "", html("b", "", columns[column]), html("span", "", plural(instances.length, "object")));
    row.querySelector(".tiles").append(html("figure", "tile", frame, caption));
  });
});
