// Where a table is wider than the page it scrolls by itself: a keyboard must be able to reach it, too.
new MutationObserver(() => {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) each.tabIndex = 0;
}).observe(document.body, { childList: true, subtree: true });
