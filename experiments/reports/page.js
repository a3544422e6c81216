"use strict";
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
heads.forEach((head, place) => head.firstChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  body.append(...[...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");  // what has no number comes last
    return (up ? 1 : -1) * (x - y || x.localeCompare(y));
  }));
}));
document.querySelector("#filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of body.rows)
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
});
const again = document.querySelector("#again");
if (again) setInterval(() => again.checked && location.reload(), again.dataset.seconds * 1000);
const figures = JSON.parse(document.querySelector("#figures").textContent);
figures.forEach((figure, place) =>
  Plotly.newPlot(`chart-${place}`, figure.data, figure.layout, figure.config));
