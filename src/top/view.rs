//! Drawing `sanlab top` and taking its keys.
//!
//! Place: [`super`] calls [`Screen::draw`] after each sample and [`Screen::key`] for each key. Invariants: 80 columns and 24 lines hold
//! everything that is needed to use it; nothing is drawn outside of the terminal, however small. Source: ours, after top(1), less(1).

use crossterm::event::{KeyCode, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState, Tabs};

use super::model::{self, Rows, Sample, View};
use crate::output;

const KEYS: &str = "q quit  Tab/1-5 view  s sort  r reverse  / filter  p pause  ? help";
const HELP: &[&str] = &[
    "1 2 3 4 5, Tab     nodes, links, connections, queues, findings",
    "Up Down PgUp PgDn  move through the rows; Home and End too",
    "s, S               sort by the next column, by the one before",
    "r                  the other way round",
    "/                  show rows with a text; Enter keeps it, Esc drops it",
    "p                  stand still",
    "+ -                look less often, more often",
    "q, Ctrl-C          end",
    "",
    "AGAIN: packets sent again, or doubled by a link. SQ, RQ: WQEs posted",
    "and not taken, of the queue's depth. Links are listed once they are",
    "or were anything but perfect.",
];

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Nothing,
    Quit,
    /// Look less often, or more often.
    Slower,
    Faster,
}

/// What is on the screen.
#[derive(Debug)]
pub(crate) struct Screen {
    pub(crate) view: View,
    sort: [(usize, bool); View::ALL.len()],
    filter: String,
    is_typing: bool,
    pub(crate) is_paused: bool,
    shows_help: bool,
    table: TableState,
    rows: usize,
    page: usize,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            view: View::Nodes,
            // Connections and queues by traffic, the others by name.
            sort: [(0, false), (0, false), (4, true), (6, true), (3, true)],
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            shows_help: false,
            table: TableState::default(),
            rows: 0,
            page: 10,
        }
    }
}

impl Screen {
    fn index(&self) -> usize {
        let found = View::ALL.iter().position(|view| *view == self.view);
        found.unwrap_or(0)
    }

    /// Takes a key.
    pub(crate) fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Asked {
        if modifiers.contains(KeyModifiers::CONTROL) {
            return match code {
                KeyCode::Char('c' | 'd') => Asked::Quit,
                _ => Asked::Nothing,
            };
        }
        if self.is_typing {
            match code {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => {
                    self.is_typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(letter) if self.filter.len() < 64 => self.filter.push(letter),
                _ => {}
            }
            return Asked::Nothing;
        }
        if std::mem::take(&mut self.shows_help) {
            return if code == KeyCode::Char('q') {
                Asked::Quit
            } else {
                Asked::Nothing
            };
        }
        let index = self.index();
        let columns = self.view.columns().len();
        match code {
            KeyCode::Char('q') => return Asked::Quit,
            KeyCode::Char('+') => return Asked::Slower,
            KeyCode::Char('-') => return Asked::Faster,
            KeyCode::Char('?' | 'h') => self.shows_help = true,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.sort[index].0 = (self.sort[index].0 + 1) % columns,
            KeyCode::Char('S') => self.sort[index].0 = (self.sort[index].0 + columns - 1) % columns,
            KeyCode::Char('r') => self.sort[index].1 = !self.sort[index].1,
            KeyCode::Tab => self.show(index + 1),
            KeyCode::BackTab => self.show(index + View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='5') => {
                self.show(usize::from(u8::try_from(digit).unwrap_or(b'1') - b'1'));
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1, true),
            KeyCode::Up | KeyCode::Char('k') => self.step(1, false),
            KeyCode::PageDown => self.step(self.page, true),
            KeyCode::PageUp => self.step(self.page, false),
            KeyCode::Home => self.step(usize::MAX, false),
            KeyCode::End => self.step(usize::MAX, true),
            _ => {}
        }
        Asked::Nothing
    }

    fn show(&mut self, index: usize) {
        self.view = View::ALL[index % View::ALL.len()];
        self.table = TableState::default();
    }

    fn step(&mut self, rows: usize, is_down: bool) {
        let last = self.rows.saturating_sub(1);
        let at = self.table.selected().unwrap_or(0);
        let to = if is_down {
            at.saturating_add(rows)
        } else {
            at.saturating_sub(rows)
        };
        self.table.select(Some(to.min(last)));
    }

    /// Draws the latest sample.
    pub(crate) fn draw(&mut self, frame: &mut Frame<'_>, before: Option<&Sample>, now: &Sample) {
        let (column, is_descending) = self.sort[self.index()];
        let mut rows = model::rows(self.view, before, now);
        let all = rows.len();
        model::arrange(&mut rows, &self.filter, column, is_descending);
        self.rows = rows.len();
        let [head, tabs, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.page = usize::from(body.height.saturating_sub(3)).max(1);
        frame.render_widget(self.summary(before, now), head);
        let titles = (1..)
            .zip(View::ALL)
            .map(|(number, view)| format!("{number} {}", view.title()));
        let tabs_line = Tabs::new(titles)
            .select(self.index())
            .highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .divider(" ");
        frame.render_widget(tabs_line, tabs);
        self.draw_rows(frame, body, &rows, all);
        let foot_line = if self.is_typing {
            Line::from(format!("filter: {}_", self.filter))
        } else {
            Line::styled(KEYS, Style::new().fg(Color::DarkGray))
        };
        frame.render_widget(Paragraph::new(foot_line), foot);
        if self.shows_help {
            let text: Vec<_> = HELP.iter().map(|line| Line::from(*line)).collect();
            let area = centred(
                frame.area(),
                74,
                u16::try_from(HELP.len()).unwrap_or(20) + 2,
            );
            frame.render_widget(Clear, area);
            let block = Block::new().borders(Borders::ALL).title(" keys ");
            frame.render_widget(Paragraph::new(text).block(block), area);
        }
    }

    /// One line about the whole cluster.
    fn summary(&self, before: Option<&Sample>, now: &Sample) -> Paragraph<'static> {
        let impaired = now
            .links
            .links
            .iter()
            .filter(|row| row.parameters.is_impaired());
        let cut = now
            .links
            .links
            .iter()
            .filter(|row| !row.parameters.up)
            .count();
        let rows = model::rows(View::Nodes, before, now);
        let again: u64 = now
            .stat
            .nodes
            .iter()
            .map(|node| node.counters.retransmitted_packets)
            .sum();
        let text = format!(
            "{}: {} nodes, {} connections, {} bad links ({cut} cut), {} resent, {} findings",
            now.stat.cluster,
            rows.len(),
            now.stat.connections.len(),
            impaired.count(),
            output::count(again),
            now.stat.findings.len(),
        );
        let mut spans = vec![Span::styled(
            text,
            Style::new().add_modifier(Modifier::BOLD),
        )];
        if self.is_paused {
            spans.push(Span::styled("  PAUSED", Style::new().fg(Color::Yellow)));
        }
        Paragraph::new(Line::from(spans))
    }

    fn draw_rows(&mut self, frame: &mut Frame<'_>, area: Rect, rows: &Rows, all: usize) {
        let columns = self.view.columns();
        let (sorted, is_descending) = self.sort[self.index()];
        let titles = columns
            .iter()
            .enumerate()
            .map(|(index, (title, _, is_number))| {
                let mark = match (index == sorted, is_descending) {
                    (false, _) => "",
                    (true, true) => "v",
                    (true, false) => "^",
                };
                let style = if index == sorted {
                    Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
                } else {
                    Style::new().add_modifier(Modifier::BOLD)
                };
                Cell::from(Line::from(format!("{title}{mark}")).alignment(side(*is_number)))
                    .style(style)
            });
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(columns).map(|(cell, (_, _, is_number))| {
                let line = Line::from(cell.text.clone()).alignment(side(*is_number));
                Cell::from(line).style(colour(&cell.text))
            });
            Row::new(cells)
        });
        let last = columns.len() - 1;
        let widths = columns.iter().enumerate().map(|(index, &(_, width, _))| {
            if index == last {
                Constraint::Min(width)
            } else {
                Constraint::Length(width)
            }
        });
        let shown = if self.filter.is_empty() {
            format!(" {all} {} ", self.view.title())
        } else {
            format!(
                " {} of {all} {} with \"{}\" ",
                rows.len(),
                self.view.title(),
                self.filter
            )
        };
        let table = Table::new(lines, widths)
            .header(Row::new(titles))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::new().borders(Borders::TOP).title(shown));
        frame.render_stateful_widget(table, area, &mut self.table);
    }
}

fn side(is_number: bool) -> Alignment {
    if is_number {
        Alignment::Right
    } else {
        Alignment::Left
    }
}

/// What needs attention stands out.
fn colour(text: &str) -> Style {
    match text {
        "cut" | "down" | "ERR" => Style::new().fg(Color::Red),
        "tcp" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::sample;
    use super::*;

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
        let (before, now) = (sample(1.0, 100), sample(2.0, 200));
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| screen.draw(frame, Some(&before), &now))
            .unwrap();
        terminal.backend().to_string()
    }

    fn press(screen: &mut Screen, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                key => KeyCode::Char(key),
            };
            assert_eq!(screen.key(code, KeyModifiers::NONE), Asked::Nothing);
        }
    }

    #[test]
    fn eighty_columns_and_24_lines_hold_every_view() {
        let mut screen = Screen::default();
        for (view, parts) in View::ALL.into_iter().zip([
            &[
                "3 nodes",
                "4 connections",
                "1 cut",
                "WQES/s",
                "CONNS",
                "down",
            ][..],
            &["a -> b", "IMPAIRED BY", "1ms, 0.1 % loss", "cut"],
            &["127.77.0.1:5", "REMOTE", "SEND-Q", "tcp"],
            &["QPN", "STATE", "0 queues"],
            &["RULE", "0 findings"],
        ]) {
            assert_eq!(screen.view, view);
            let text = drawn(&mut screen, 80, 24);
            for part in parts.iter().chain(&["q quit", "? help", "5 findings"]) {
                assert!(text.contains(part), "{part}: {text}");
            }
            press(&mut screen, "\t");
        }
        assert_eq!(screen.view, View::Nodes);
    }

    #[test]
    fn keys_sort_filter_and_explain() {
        let mut screen = Screen::default();
        let lines = |text: &str| -> Vec<String> {
            let rows = text.lines().map(|line| line.trim_matches('"').trim_end());
            rows.skip(4)
                .take(3)
                .map(|row| row.split_whitespace().next().unwrap_or("").to_owned())
                .collect()
        };
        assert_eq!(lines(&drawn(&mut screen, 80, 24)), ["a", "b", "c"]);
        press(&mut screen, "r");
        assert_eq!(lines(&drawn(&mut screen, 80, 24)), ["c", "b", "a"]);
        press(&mut screen, "s/dow\n");
        let text = drawn(&mut screen, 80, 24);
        assert!(
            text.contains("1 of 3 nodes with \"dow\"") && text.contains("PORTv"),
            "{text}"
        );
        screen.key(KeyCode::Esc, KeyModifiers::NONE);
        press(&mut screen, "?");
        assert!(drawn(&mut screen, 80, 24).contains("show rows with a text"));
        press(&mut screen, "xp");
        assert!(drawn(&mut screen, 120, 24).contains("PAUSED"));
        for _ in 0..5 {
            screen.key(KeyCode::Down, KeyModifiers::NONE);
        }
        assert_eq!(screen.table.selected(), Some(2));
        screen.key(KeyCode::PageUp, KeyModifiers::NONE);
        assert_eq!(screen.table.selected(), Some(0));
        assert_eq!(
            screen.key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Asked::Quit
        );
        assert_eq!(
            screen.key(KeyCode::Char('q'), KeyModifiers::NONE),
            Asked::Quit
        );
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut screen = Screen::default();
        for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 3), (400, 100)] {
            drawn(&mut screen, width, height);
            press(&mut screen, "?");
            drawn(&mut screen, width, height);
            press(&mut screen, "x\t");
        }
    }
}
