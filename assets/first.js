// Runs before Gradio reads the browser's language and paints, so that nothing flashes.
(function () {
  var cookie = function (name) { return (document.cookie.match('(?:^|; )' + name + '=([a-z]+)') || [])[1]; };
  var language = cookie('LANGUAGE_COOKIE');
  if (language) {
    Object.defineProperty(navigator, 'language', { get: function () { return language; } });
    Object.defineProperty(navigator, 'languages', { get: function () { return [language]; } });
  }
  var main = (language || navigator.language || 'en').slice(0, 2);
  document.documentElement.lang = main === 'ko' ? 'ko' : 'en';
  var shade = cookie('lora_studio_shade');
  if (shade && !location.search.includes('__theme=')) {
    // What else is asked for stays: a private Space is opened by a signature in the address.
    var query = location.search ? location.search + '&' : '?';
    history.replaceState(null, '', location.pathname + query + '__theme=' + shade + location.hash);
  }
})();
