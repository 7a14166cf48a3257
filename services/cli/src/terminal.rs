//! What is known of the terminal. The environment is read through clap, like every other setting.

use clap::{Args, ValueEnum};
use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    path::PathBuf,
};

/// Variables that terminals and desktops set for every program.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TerminalArgs {
    /// Coloured log prefixes and timelines: on a terminal, or whatever the output is
    #[arg(long, global = true, env = "SDXL_COLOR", value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    /// See <https://no-color.org>
    #[arg(long = "no-color-variable", env = "NO_COLOR", hide = true)]
    pub(crate) no_color: Option<OsString>,
    /// The terminal's kind, as `xterm-kitty`
    #[arg(long = "term-variable", env = "TERM", hide = true)]
    pub(crate) term: Option<String>,
    /// The terminal's name, as `iTerm.app`
    #[arg(long = "term-program-variable", env = "TERM_PROGRAM", hide = true)]
    pub(crate) term_program: Option<String>,
    /// Set by kitty
    #[arg(long = "kitty-window-id-variable", env = "KITTY_WINDOW_ID", hide = true)]
    pub(crate) kitty_window_id: Option<String>,
    /// Set by Windows Terminal
    #[arg(long = "wt-session-variable", env = "WT_SESSION", hide = true)]
    pub(crate) wt_session: Option<String>,
    /// The locale, for all of its parts
    #[arg(long = "lc-all-variable", env = "LC_ALL", hide = true)]
    pub(crate) lc_all: Option<OsString>,
    /// The locale of characters
    #[arg(long = "lc-ctype-variable", env = "LC_CTYPE", hide = true)]
    pub(crate) lc_ctype: Option<OsString>,
    /// The locale of what no other variable is about
    #[arg(long = "lang-variable", env = "LANG", hide = true)]
    pub(crate) lang: Option<OsString>,
    /// Where programs keep what they can make again
    #[arg(long = "xdg-cache-home-variable", env = "XDG_CACHE_HOME", hide = true)]
    pub(crate) xdg_cache_home: Option<OsString>,
    /// The person's own folder
    #[arg(long = "home-variable", env = "HOME", hide = true)]
    pub(crate) home: Option<OsString>,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl TerminalArgs {
    /// Whether standard error is coloured.
    pub(crate) fn coloured(&self) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                self.no_color.as_ref().is_none_or(|v| v.is_empty())
                    && self.term.as_deref() != Some("dumb")
                    && io::stderr().is_terminal()
            }
        }
    }

    /// Whether characters are read as UTF-8, by the first variable that says (POSIX's Environment Variables, 8.2).
    pub(crate) fn takes_utf8(&self) -> bool {
        let said = [&self.lc_all, &self.lc_ctype, &self.lang].into_iter().flatten().find(|v| !v.is_empty());
        let locale = said.map(|locale| locale.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        locale.contains("utf-8") || locale.contains("utf8")
    }

    /// The folder for what can be made again: `$XDG_CACHE_HOME/sdxl` or `~/.cache/sdxl`.
    pub(crate) fn cache_dir(&self) -> Option<PathBuf> {
        // The base directory specification has relative paths ignored.
        let folder = |variable: &Option<OsString>| {
            variable.as_ref().map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let base =
            folder(&self.xdg_cache_home).or_else(|| folder(&self.home).map(|home| home.join(".cache")));
        base.map(|path| path.join("sdxl"))
    }
}

/// How wide standard error is drawn, where it is no terminal.
const NO_TERMINAL_COLUMNS: usize = 100;

/// How many characters fit into a line of standard error.
pub(crate) fn stderr_columns() -> usize {
    if !io::stderr().is_terminal() {
        return NO_TERMINAL_COLUMNS;
    }
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok();
    size.filter(|size| size.ws_col > 0).map_or(80, |size| size.ws_col.into())
}

/// Standard output's size, where it is a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Cells a line.
    pub(crate) columns: u32,
    /// Lines.
    pub(crate) rows: u32,
    /// A cell's width in pixels; a guess where the terminal does not tell.
    pub(crate) cell_width: u32,
    /// A cell's height in pixels; a guess where the terminal does not tell.
    pub(crate) cell_height: u32,
}

impl Window {
    /// Asks the terminal at standard output; a common size where it does not tell.
    pub(crate) fn of_stdout() -> Self {
        match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
            Ok(s) => Self::new(s.ws_col.into(), s.ws_row.into(), s.ws_xpixel.into(), s.ws_ypixel.into()),
            Err(_) => Self::new(0, 0, 0, 0),
        }
    }

    /// Zeros stand for what is not known.
    fn new(columns: u32, rows: u32, width: u32, height: u32) -> Self {
        let (columns, rows) = if columns == 0 || rows == 0 { (80, 24) } else { (columns, rows) };
        let (cell_width, cell_height) = match (width / columns, height / rows) {
            (0, _) | (_, 0) => (10, 20),
            cell => cell,
        };
        Self { columns, rows, cell_width, cell_height }
    }

    /// The greatest size in pixels, up to three quarters of the window, that keeps the proportions of a picture of
    /// `width` x `height` pixels and does not enlarge it; no side is 0.
    pub(crate) fn fit(self, width: u32, height: u32) -> (u32, u32) {
        let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
        let room = |cells: u32, cell: u32| f64::from(cells) * f64::from(cell);
        let scale = (room(self.columns, self.cell_width) / width)
            .min(0.75 * room(self.rows, self.cell_height) / height)
            .min(1.0);
        let side = |pixels: f64| (pixels * scale).floor().max(1.0) as u32;
        (side(width), side(height))
    }

    /// How many columns a picture takes that is `width` pixels wide.
    pub(crate) fn columns_of(self, width: u32) -> u32 {
        width.div_ceil(self.cell_width).clamp(1, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_fit_into_the_window_and_keep_their_proportions() {
        let window = Window::new(80, 24, 0, 0);
        assert_eq!(window, Window { columns: 80, rows: 24, cell_width: 10, cell_height: 20 });
        assert_eq!(window.fit(1024, 1024), (360, 360));
        assert_eq!(window.fit(2048, 512), (800, 200));
        assert_eq!(window.fit(64, 64), (64, 64), "small pictures are not enlarged");
        assert_eq!(window.fit(1, 100_000), (1, 360));
        assert_eq!(window.columns_of(360), 36);
        assert_eq!(window.columns_of(100_000), 80);
        assert_eq!(Window::new(100, 50, 900, 900).cell_width, 9);
        assert_eq!(Window::new(0, 0, 0, 0), window);
    }

    #[test]
    fn the_cache_is_where_the_desktop_has_it() {
        let args = |xdg: Option<&str>, home: Option<&str>| TerminalArgs {
            xdg_cache_home: xdg.map(Into::into),
            home: home.map(Into::into),
            ..TerminalArgs::default()
        };
        assert_eq!(args(Some("/x"), Some("/h")).cache_dir(), Some("/x/sdxl".into()));
        assert_eq!(args(Some("x"), Some("/h")).cache_dir(), Some("/h/.cache/sdxl".into()));
        assert_eq!(args(None, Some("/h")).cache_dir(), Some("/h/.cache/sdxl".into()));
        assert_eq!(args(None, None).cache_dir(), None);
    }

    #[test]
    fn the_first_variable_that_says_anything_tells_how_characters_are_read() {
        let takes_utf8 = |lc_all: Option<&str>, lc_ctype: Option<&str>, lang: Option<&str>| {
            let [lc_all, lc_ctype, lang] = [lc_all, lc_ctype, lang].map(|value| value.map(Into::into));
            TerminalArgs { lc_all, lc_ctype, lang, ..TerminalArgs::default() }.takes_utf8()
        };
        assert!(takes_utf8(None, None, Some("de_DE.UTF-8")));
        assert!(takes_utf8(Some(""), Some("C.utf8"), Some("C")));
        assert!(!takes_utf8(Some("C"), Some("C.UTF-8"), Some("C.UTF-8")));
        assert!(!takes_utf8(None, None, Some("en_US.ISO-8859-1")));
        assert!(!takes_utf8(None, None, None));
    }

    #[test]
    fn colour_can_be_forced_either_way() {
        let args = |color| TerminalArgs { color, no_color: Some("1".into()), ..TerminalArgs::default() };
        assert!(args(Color::Always).coloured());
        assert!(!args(Color::Auto).coloured());
        assert!(!args(Color::Never).coloured());
    }
}
