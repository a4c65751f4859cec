// Numbers where the pointer is, and the row of a place that is clicked. The page says the same without: below every drawing are its numbers.
"use strict";
{
  const tip = document.getElementById("tip");
  const show = (spot, x, y) => {
    tip.textContent = spot.dataset.says;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
    const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${Math.max(top, 4)}px`;
  };
  // The row of the figure's numbers that a place stands for, as a card below the drawing.
  const open = (figure, spot) => {
    const link = spot.closest("a");
    const row = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!row) return;
    figure.querySelectorAll(".chosen").forEach((each) => each.classList.remove("chosen"));
    spot.classList.add("chosen");
    let card = figure.querySelector(".card");
    if (!card) {
      card = document.createElement("dl");
      card.className = "card";
      card.setAttribute("aria-live", "polite");
      figure.querySelector(".drawing").after(card);
    }
    card.replaceChildren(
      ...[...row.cells].flatMap((cell) => {
        const name = document.createElement("dt");
        const value = document.createElement("dd");
        name.textContent = cell.dataset.column;
        value.append(...[...cell.childNodes].map((node) => node.cloneNode(true)));
        return [name, value];
      }),
    );
  };
  for (const drawing of document.querySelectorAll(".drawing")) {
    const spots = [...drawing.querySelectorAll(".spots rect, .spots circle")];
    if (!spots.length) continue;
    const figure = drawing.closest("figure");
    let at = -1;
    for (const spot of spots) {
      const title = spot.querySelector("title");
      spot.dataset.says = title.textContent;
      title.remove(); // or the browser would show it too
    }
    drawing.addEventListener("pointermove", (event) => {
      const spot = event.target.closest("rect[data-says], circle[data-says]");
      if (spot) show(spot, event.clientX, event.clientY);
      else tip.hidden = true;
    });
    drawing.addEventListener("pointerleave", () => (tip.hidden = true));
    drawing.addEventListener("click", (event) => {
      const spot = event.target.closest("rect[data-says], circle[data-says]");
      if (!spot) return;
      event.preventDefault();
      at = spots.indexOf(spot);
      open(figure, spot);
    });
    drawing.tabIndex = 0;
    drawing.setAttribute("role", "group");
    drawing.setAttribute("aria-label", "arrow keys go from place to place, Enter opens its numbers");
    drawing.addEventListener("blur", () => (tip.hidden = true));
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        at = (Math.max(at, step > 0 ? -1 : 0) + step + spots.length) % spots.length;
        const box = spots[at].getBoundingClientRect();
        show(spots[at], box.right, box.bottom);
        open(figure, spots[at]);
      } else if (event.key === "Enter" && at >= 0) open(figure, spots[at]);
      else if (event.key === "Escape") tip.hidden = true;
      else return;
      event.preventDefault();
    });
  }
}
