// A figure with sliders shows the picture of the state that they choose; all pictures were drawn when the book was built.
document.addEventListener("input", (event) => {
  const figure = event.target.closest("figure.choices");
  if (!figure) return;
  const sliders = [...figure.querySelectorAll("input")];
  for (const slider of sliders) {
    slider.ariaValueText = JSON.parse(slider.dataset.values)[slider.value];
    slider.nextElementSibling.textContent = slider.ariaValueText;
  }
  const states = JSON.parse(figure.dataset.states);
  const state = states[sliders.map((slider) => slider.ariaValueText).join("-")];
  const picture = figure.querySelector("img");
  picture.src = state.src;
  picture.alt = state.alt;
  figure.querySelector("figcaption").textContent = state.said;
});
