"""ms-swift registrations: model loader, template, data set, loss, optimizer, tuner. The only package that imports swift."""
