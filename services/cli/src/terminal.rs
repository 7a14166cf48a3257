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
    /// Coloured log prefixes: on a terminal, or whatever the output is
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
    fn colour_can_be_forced_either_way() {
        let args = |color| TerminalArgs { color, no_color: Some("1".into()), ..TerminalArgs::default() };
        assert!(args(Color::Always).coloured());
        assert!(!args(Color::Auto).coloured());
        assert!(!args(Color::Never).coloured());
    }
}
