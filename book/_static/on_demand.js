// An interactive view is megabytes: its link loads it into the page. Without JavaScript the link opens it by itself.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.on-demand");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const view = document.createElement("iframe");
  view.src = link.href;
  view.title = link.dataset.title;
  const caption = document.createElement("figcaption");
  caption.textContent = link.dataset.title;
  const figure = document.createElement("figure");
  figure.className = "on-demand";
  figure.append(view, caption);
  link.replaceWith(figure);
  view.focus();
});
