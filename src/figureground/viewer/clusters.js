function writeNames() {
  const names = {};
  document.querySelectorAll(".sheet").forEach((sheet) => {
    const [name, drop] = sheet.querySelectorAll("input");
    sheet.classList.toggle("dropped", drop.checked);
    if (drop.checked) names[sheet.dataset.id] = null;
    else if (name.value.trim()) names[sheet.dataset.id] = name.value.trim();
  });
  find("names").value = JSON.stringify(names, null, 1);
}
document.addEventListener("input", writeNames);
find("names").addEventListener("focus", (event) => event.target.select());
writeNames();
