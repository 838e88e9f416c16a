// SPDX-License-Identifier: Apache-2.0
//! Texts of mails, as plain text and as HTML. What users chose (names of teams) is quoted, never taken as markup, and no mail to
//! an address that is not known to be its user's has a text that somebody else chose.

use super::Mail;

/// A mail as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) subject: String,
    pub(super) plain: String,
    pub(super) html: String,
}

/// Writes a mail. `link` is the URL of a mail that has one, and `public_url` that of the server. A sign-up without a link is one
/// with the address of an account.
pub(super) fn write(mail: &Mail, public_url: &str, link: Option<&str>) -> Text {
    let (subject, paragraphs) = words(mail, link.is_some());
    let end = format!("This mail is from Wrenn at {public_url}.");
    let mut plain = format!("{}\n", paragraphs.join("\n\n"));
    let mut html: String = paragraphs.iter().map(|text| format!("<p>{}</p>\n", escaped(text))).collect();
    if let Some(link) = link {
        plain.push_str(&format!("\n{link}\n"));
        let target = escaped(link);
        html.push_str(&format!("<p><a href=\"{target}\">{target}</a></p>\n"));
    }
    plain.push_str(&format!("\n-- \n{end}\n"));
    html.push_str(&format!("<p><small>{}</small></p>\n", escaped(&end)));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{}</title></head>\n<body>\n{html}</body>\n\
         </html>\n",
        escaped(&subject)
    );
    Text { subject, plain, html }
}

fn words(mail: &Mail, has_link: bool) -> (String, Vec<String>) {
    match mail {
        Mail::Activation { .. } if !has_link => told(
            "You have a Wrenn account already",
            &[
                "Somebody has tried to make an account with this address, for which there is one already. If it was you, sign in \
                 with it, or set another password if you do not know yours any more.",
                "If it was not you, you need not do anything.",
            ],
        ),
        Mail::Activation { .. } => told(
            "Activate your Wrenn account",
            &[
                "Somebody, you as we hope, has made an account with this address. This link activates it. It works once, within \
                 24 hours.",
                "If it was not you, do nothing: there is no account without the link. If several of these mails have come, somebody \
                 else may have asked for one, and its link activates a password of theirs: sign up once more, and use the link that \
                 comes then.",
            ],
        ),
        Mail::PasswordReset => told(
            "Set another Wrenn password",
            &[
                "Somebody, you as we hope, has asked to set another password for your account. This link does that. It works \
                 once, within an hour, and ends all your sessions.",
                "If it was not you, do nothing: your password stays as it is.",
            ],
        ),
        Mail::PasswordChanged => told(
            "Your Wrenn password was changed",
            &[
                "The password of your account was changed, and all other sessions were ended.",
                "If it was not you, set another password at once, and tell the operator of the server.",
            ],
        ),
        Mail::AccountDeleted { days } => told(
            "Your Wrenn account is deleted",
            &[
                &format!("Your account is deleted. In {days} days it is removed for good."),
                "If it was not you, or if you want it back, tell the operator of the server before that.",
            ],
        ),
        Mail::Invitation { team, inviter, role, .. } => told(
            &format!("Join the team {} on Wrenn", one_line(team)),
            &[
                &format!(
                    "{} invites you into the team \"{}\" as {}. This link lets you join it. It works once, within 7 days, for an \
                     account with this address.",
                    one_line(inviter),
                    one_line(team),
                    one_line(role)
                ),
                "If you do not know who that is, do nothing.",
            ],
        ),
        Mail::Removed { team } => {
            let team = one_line(team);
            told(
                &format!("You have left the team {team}"),
                &[&format!("You are in the team \"{team}\" no more.")],
            )
        }
        Mail::TeamDeleted { team } => {
            let team = one_line(team);
            let text = format!("The team \"{team}\" was deleted, with its sandboxes, templates and keys.");
            told(&format!("The team {team} was deleted"), &[&text])
        }
        Mail::Ownership { team } => {
            let team = one_line(team);
            told(
                &format!("You own the team {team}"),
                &[&format!("You are the owner of the team \"{team}\" now.")],
            )
        }
    }
}

fn told(subject: &str, paragraphs: &[&str]) -> (String, Vec<String>) {
    (subject.to_owned(), paragraphs.iter().map(|text| (*text).to_owned()).collect())
}

/// Text without control characters, which would begin another line or header.
fn one_line(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use wrenn_api::InvitationId;

    use super::*;

    fn invitation(team: &str) -> Mail {
        let (inviter, role) = ("jo@example.com".to_owned(), "admin".to_owned());
        Mail::Invitation { invitation: InvitationId::new(), team: team.to_owned(), inviter, role }
    }

    #[test]
    fn what_users_chose_is_no_markup_and_no_header() {
        let text = write(&invitation("<b>\r\nBcc: x@y\r\n"), "https://w", Some("https://w/#token=a"));
        assert!(!text.html.contains("<b>") && text.html.contains("&lt;b&gt;"), "{}", text.html);
        assert!(!text.subject.contains(['\r', '\n']), "{:?}", text.subject);
        assert!(!text.plain.contains("\nBcc"), "{}", text.plain);
    }

    #[test]
    fn both_forms_have_the_link() {
        let link = "https://w/account/activate#token=a&b";
        let text = write(&Mail::Activation { sign_up: uuid::Uuid::nil() }, "https://w", Some(link));
        assert!(text.plain.contains(&format!("\n{link}\n")), "{}", text.plain);
        assert!(text.html.contains("href=\"https://w/account/activate#token=a&amp;b\""), "{}", text.html);
    }

    #[test]
    fn every_mail_says_where_it_is_from() {
        let team = || "shop".to_owned();
        for mail in [
            Mail::Activation { sign_up: uuid::Uuid::nil() },
            Mail::PasswordChanged,
            Mail::AccountDeleted { days: 15 },
            Mail::Removed { team: team() },
            Mail::TeamDeleted { team: team() },
            Mail::Ownership { team: team() },
            invitation("shop"),
        ] {
            let text = write(&mail, "https://w", None);
            for form in [&text.plain, &text.html] {
                assert!(form.contains("Wrenn at https://w."), "{form}");
            }
            assert!(!text.subject.is_empty());
        }
    }
}
